"""The promises, under real faults: see ``run.py`` for how a scenario is played and replayed."""
