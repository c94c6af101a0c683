"""RoPE in one call, for tests."""

from attnlab.modules import rotary


def rotate(x_TK, theta, start=0):
    tokens, width = x_TK.shape[-2:]
    return rotary.rotate(x_TK, rotary.rotation(rotary.Rope(theta, width), start, tokens, like=x_TK))
