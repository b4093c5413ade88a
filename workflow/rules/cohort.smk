rule catalog:
    input:
        upstream("catalog"),
    output:
        "results/receipts/catalog/{name}.{digest}.json",
    log:
        "logs/catalog/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/catalog/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        slice="results/plan/catalog/{name}.{digest}.json",
    message:
        "List every image and what became of it: {wildcards.name}"
    shell:
        "python -P -m pipeline catalog {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule gate:
    input:
        upstream("gate"),
    output:
        "results/receipts/gate/{name}.{digest}.json",
    log:
        "logs/gate/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/gate/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        slice="results/plan/gate/{name}.{digest}.json",
    message:
        "See whether enough labelled images can be used: {wildcards.name}"
    shell:
        "python -P -m pipeline gate {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule split:
    input:
        upstream("split"),
    output:
        "results/receipts/split/{name}.{digest}.json",
    log:
        "logs/split/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/split/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        slice="results/plan/split/{name}.{digest}.json",
    message:
        "Divide patients into folds: {wildcards.name}"
    shell:
        "python -P -m pipeline split {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"
