"""Trains the project's own small pool: one base, three dozen real PEFT adapters, and the tasks they solve."""
