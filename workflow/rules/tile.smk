rule tile:
    output:
        "results/receipts/tile/{name}.{digest}.json",
    log:
        "logs/tile/{name}.{digest}.log",
    benchmark:
        "results/benchmarks/tile/{name}.{digest}.tsv"
    conda:
        "../../envs/pipeline.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=tile_minutes,
    params:
        slice="results/plan/tile/{name}.{digest}.json",
        silence=settings.silence_seconds,
    message:
        "Tile the images of shard: {wildcards.name}"
    shell:
        "python -P -m pipeline tile {params.slice:q} {output:q} --threads {threads}"
        " --memory-mb {resources.mem_mb} --silence-seconds {params.silence}"
        " > {log:q} 2>&1"
