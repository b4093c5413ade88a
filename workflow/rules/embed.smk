# On the machine that runs Snakemake: nodes of a cluster may have no network.
localrules:
    weights,


rule weights:
    output:
        "results/receipts/weights/{name}.{digest}.json",
    log:
        "logs/weights/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/weights/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=60,
    params:
        slice="results/plan/weights/{name}.{digest}.json",
    message:
        "Fetch the weights of: {wildcards.name}"
    shell:
        "python -P -m pipeline weights {params.slice:q} {output:q} --threads {threads}"
        " > {log:q} 2>&1"


rule embed:
    input:
        upstream("embed"),
    output:
        "results/receipts/embed/{name}.{digest}.json",
    log:
        "logs/embed/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/embed/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 8
    resources:
        mem_mb=12000,
        runtime=embed_minutes,
        gpu=0 if settings.device == "cpu" else 1,
    params:
        slice="results/plan/embed/{name}.{digest}.json",
        silence=settings.silence_seconds,
        device=settings.device,
    message:
        "Embed the tiles of shard: {wildcards.name}"
    shell:
        "python -P -m pipeline embed {params.slice:q} {output:q} --threads {threads}"
        " --memory-mb {resources.mem_mb} --silence-seconds {params.silence} --device {params.device}"
        " > {log:q} 2>&1"
