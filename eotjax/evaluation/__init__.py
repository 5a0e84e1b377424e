"""How good translations are, in numbers and pictures: the judge and its measures
(evaluate, judge, measures; classifier: KID and the Fréchet distance in a network's
features; fidelity: FID, KID and LPIPS with Inception's and VGG's; known_plan_report:
against closed forms), and the model card. Commands import it; it imports every layer
below, no command and no config of its own.
"""
