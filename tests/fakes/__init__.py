"""Fakes of ports and peers; each runs the same contract suite as what it stands for."""
