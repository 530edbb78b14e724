"""Which of diffusers' schedulers are supported, by name."""

# Single-step solvers whose noise levels are known exactly: latents may be re-noised between their steps.
RENOISING_SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler")
# Right in the plain loop; tests hold each of them against diffusers' own pipeline.
OTHER_SCHEDULERS = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
# Deterministic solvers whose levels the plan knows: edit cards can be learned with them.
INVERTIBLE_SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
