"""Which of diffusers' schedulers are supported, by name."""

# Latents may be re-noised between their steps: their noise levels are known exactly, and their memory of earlier steps,
# where they have one, can begin anew (history.py).
RENOISING_SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
)
# Right in the plain loop; tests hold each of them against diffusers' own pipeline.
OTHER_SCHEDULERS = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
)
# Deterministic solvers whose levels the plan knows: edit cards can be learned with them.
INVERTIBLE_SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
