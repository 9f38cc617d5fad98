"""What ``make gpu-check`` and ``make gpu-tune`` run: build, tests, the suite beside dense layers, goals; tuning."""
