rule explain:
    input:
        upstream("explain"),
    output:
        "results/receipts/explain/{name}.{digest}.json",
    log:
        "logs/explain/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/explain/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        slice="results/plan/explain/{name}.{digest}.json",
    message:
        "Draw the attention of: {wildcards.name}"
    shell:
        "python -P -m pipeline explain {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule report:
    input:
        upstream("report"),
    output:
        "results/receipts/report/{name}.{digest}.json",
    log:
        "logs/report/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/report/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        slice="results/plan/report/{name}.{digest}.json",
    message:
        "Write the report: {wildcards.name}"
    shell:
        "python -P -m pipeline report {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"
