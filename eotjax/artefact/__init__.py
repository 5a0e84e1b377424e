"""What a run leaves and users load: export writes and reads its folder (parameters,
config.json, example sources), translator has it in use, stablehlo makes it a program,
folder translates files into a folder, files says which ones a path means. It may import
the layers below; nothing of training's loop, and no measure.
"""
