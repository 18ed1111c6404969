"""The verbs on live modules.

find       the layers of a live module, by what computes them
selection  those that are wanted; those refused
undo       surgery undone
surgery    weight norm taken out and put in
split      split_module
convert    fold_module, folded, weights_folded, migrate_module
inspect    inspect_module
"""
