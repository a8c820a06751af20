"""Speed and accuracy, each as a ratio against a named peer in the same run, beside its goal.

python -m benchmarks              all of them
python -m benchmarks forward load the named ones
"""
