"""A factor for each channel: the norm beside a layer, in the layer's weight.

vector   γ / √(v + eps) of each channel
views    a weight as rows that have one channel each
scale    the factors of rows, times those of their channels
shifts   what a norm before a layer adds to its bias
"""
