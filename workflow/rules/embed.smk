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
