"""Macarro et al., J Magn Reson Imaging 61(2):1018–1021, 2025: prediction of the advanced protocol."""
