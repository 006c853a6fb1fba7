"""The demo family: a tiny base model, three experts fine-tuned from it, and the texts that train and test them."""
