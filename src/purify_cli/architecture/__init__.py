"""What architectures differ in, as data: embeddings, attention, heads, classifiers, summary tokens."""
