"""What a training costs on this machine, measured: a grid of short trainings over how the step is run (attention,
micro-batch, compilation, processes and what joins them), after "Computational Bottlenecks of Training Small-scale Large
Language Models" (arXiv:2410.19456). Only `worker`, `of_recipe`, `of_shape` and `prepare` compute with torch."""
