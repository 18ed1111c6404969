"""Files of weights as data: bytes in, layouts out.

zips         zip archives: directory in, layout out
safetensors  safetensors: header in, layout out
pickle       pickles as data: read by a small machine that imports and calls nothing, and written back
npz          NumPy's archives of arrays: headers in, layout out
torch        files of torch.save: state dicts, modules and optimizers in a pickle
exported     exported programs (.pt2): their weights as data
distributed  folders of torch.distributed.checkpoint: one torch file over the chunks in them
paddle       files of paddle.save: NumPy arrays in a pickle, which stay where they lie
msgpack      MessagePack: the structure of a file, as data
flax         files of flax.serialization: arrays in MessagePack, which stay where they lie
recipes      recipes as TOML: read and written
"""
