"""How well subjects are drawn: held-out people, judges, the comparison of methods and its report.

Entry points: `avatars.evaluate_avatars`, `base.evaluate_base`, `tune.tune_settings`. Nothing outside this package loads
the test judge, and nothing in it but an evaluation on the test people does.
"""
