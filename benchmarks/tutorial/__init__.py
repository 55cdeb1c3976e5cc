"""Everything that TFRS's tutorial on efficient serving shows, run here, beside its figures and Shortlist's own.

The tutorial: https://www.tensorflow.org/recommenders/examples/efficient_serving, with the towers, optimizer and batches of
https://www.tensorflow.org/recommenders/examples/basic_retrieval.
"""
