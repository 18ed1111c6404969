"""The model that a user names: built or read, its weights loaded.

operators      operators of torch that only compute
program_texts  which texts are allowed where in a .pt2 file
programs       .pt2 files, loaded only if torch could have written them
script_texts   whether the code of a TorchScript archive only computes
scripts        TorchScript archives, loaded only if it does
weights        a checkpoint loaded into a module, strictly
factories      the user's code, imported and called
folders        the model of a folder, built by the installed class that its config names
model          MODEL of the command line: found, built or read
prepared       a model with its inputs settled and its weights loaded; the list of its inputs
"""
