"""Memory of training: ``measure`` looks, ``model`` predicts, ``budgets`` says what fits."""
