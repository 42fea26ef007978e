from __future__ import annotations

from rule_extrapolation.models.deltanet import DeltaNet


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464, equation 10): the memory decays before it is corrected.

    The factor depends on the token and the head, as in Mamba-2. The output of a layer is gated. Arguments and errors
    are DeltaNet's.
    """

    gated = True
