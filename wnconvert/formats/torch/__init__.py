"""The files of torch.save: state dicts, modules and optimizers in a pickle.

known_names  callables: what only makes data, and what reaches further
names        names that are not torch's, and dangerous ones
records      the meaning of torch's records: storages, tensors, modules
archives     the records of a zip archive: a pickle's bytes, storages
arrays       NumPy arrays, in NumPy's own spellings
contents     where state dicts and optimizers are in a pickle
dtensors     one rank's parts of tensors: whole ones unwrapped, others refused
edits        records that take the place of old ones: modules, optimizers
reader       zip, legacy and TorchScript files opened
writer       a plan to the layout of a torch zip
"""
