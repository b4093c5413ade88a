rule adopt:
    output:
        "results/receipts/adopt/{name}.{digest}.json",
    log:
        "logs/adopt/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/adopt/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=adopt_minutes,
    params:
        slice="results/plan/adopt/{name}.{digest}.json",
        silence=settings.silence_seconds,
    message:
        "Adopt the features of shard: {wildcards.name}"
    shell:
        "python -P -m pipeline adopt {params.slice:q} {output:q} --threads {threads}"
        " --memory-mb {resources.mem_mb} --silence-seconds {params.silence}"
        " > {log:q} 2>&1"
