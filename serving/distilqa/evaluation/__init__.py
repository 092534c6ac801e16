"""How well answers are: SQuAD's questions and its metric."""
