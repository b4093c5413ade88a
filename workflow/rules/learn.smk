rule train:
    input:
        upstream("train"),
    output:
        "results/receipts/train/{name}.{digest}.json",
    log:
        "logs/train/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/train/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=240,
    params:
        slice="results/plan/train/{name}.{digest}.json",
    message:
        "Train: {wildcards.name}"
    shell:
        "python -P -m pipeline train {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule predict:
    input:
        upstream("predict"),
    output:
        "results/receipts/predict/{name}.{digest}.json",
    log:
        "logs/predict/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/predict/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        slice="results/plan/predict/{name}.{digest}.json",
    message:
        "Predict: {wildcards.name}"
    shell:
        "python -P -m pipeline predict {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule evaluate:
    input:
        upstream("evaluate"),
    output:
        "results/receipts/evaluate/{name}.{digest}.json",
    log:
        "logs/evaluate/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/evaluate/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        slice="results/plan/evaluate/{name}.{digest}.json",
    message:
        "Evaluate the heads of: {wildcards.name}"
    shell:
        "python -P -m pipeline evaluate {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"
