"""The study's claims about anomalies of diffusion, checked with the tables of an evaluation."""

from __future__ import annotations

__all__ = ["CLASSICAL", "LATENTS", "NOISES", "method_name"]

#: Sizes of the latent vector and kinds of noise that the study reports.
LATENTS = (16, 32, 64, 128, 256, 512)
NOISES = (
    *("normal random", "normal directional", "uniform random", "uniform directional", "uniform isotropic"),
    "mix",
)
#: Detectors without a network.
CLASSICAL = ("z, one-sided", "z, two-sided", "Mahalanobis", "PCA", "isolation forest")


def method_name(
    network: str,
    *,
    output: str = "sigmoid",
    latent: int = 512,
    noise: str = "mix",
    mean: str = "half",
    form: str = "",
) -> str:
    """
    Name a method as the claims know it.

    Parameters
    ----------
    network : str
        "DAE" or "RecDiscNet"; any other name, such as one of `CLASSICAL`, stays as it is.
    output : str, default="sigmoid"
        Of an autoencoder: "sigmoid" or "linear".
    latent : int, default=512
        Of an autoencoder: size of the latent vector.
    noise : str, default="mix"
        Of a RecDiscNet: what ellipsoids are filled with, one of `NOISES` (an underscore counts as a space).
    mean : str, default="half"
        Of a RecDiscNet: mean of that noise, "half" or "full".
    form : str, default=""
        What else it is: "mean of abs" (residual of an autoencoder), "residual" (of a RecDiscNet, whose plain row is
        the output of the discriminator).

    Returns
    -------
    str
        For example "DAE sigmoid 512", "RecDiscNet mix half, residual".
    """
    name = network
    if network == "DAE":
        name = f"DAE {output} {latent:d}"
    elif network == "RecDiscNet":
        name = f"RecDiscNet {noise.replace('_', ' ').replace('-', ' ')} {mean}"
    return f"{name}, {form}" if form else name
