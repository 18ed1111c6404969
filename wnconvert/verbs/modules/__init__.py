"""The verbs on live modules.

finding    the layers of a live module, found by the code that computes them
selection  the layers that a verb is for; errors for those it must refuse
outside    legacy weights that other code reads; the warning where outputs change
undo       edits of modules that can be undone
surgery    taking what computes a weight out of a module
folding    what a fold is made of: recipes, numbers, what becomes of a norm
forms      putting weight norm or spectral norm into a module
split      split_module
convert    fold_module, folded, weights_folded, migrate_module
inspect    inspect_module
"""
