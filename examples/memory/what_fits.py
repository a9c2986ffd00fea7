"""Which layers of LLaMA-65B are read from disk for a token, by memory and format."""

from thesis_lib.memory import Machine, PlanInfeasible, geometry, plan

GIB = 2**30
llama = geometry("llama-65b")
print(
    f"{llama.name}: {llama.total_bytes / 1e9:.1f} GB in 16 bits, {llama.layers} layers"
)
for kind in ("dense", "nf4"):
    for gib in (1, 4, 8, 24, 48):
        try:
            made = plan(llama, Machine(gib * GIB, disk_bytes_per_s=3e9), kind=kind)
        except PlanInfeasible:
            print(f"{kind:<6}{gib:3} GiB: cannot run")
            continue
        peak_gib = made.device_peak_bytes / GIB
        print(
            f"{kind:<6}{gib:3} GiB: {made.disk_layers:2} layers from disk, "
            f"at most {peak_gib:.2f} GiB"
        )
