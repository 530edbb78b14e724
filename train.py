"""Train any part of the system: python train.py fit --config configs/tiny/vae.yaml; repeat the command to resume."""

from promptnet.training.cli import main

if __name__ == "__main__":
    main()
