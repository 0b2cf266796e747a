"""AdaLoRA as a method: a budget of triplets that falls while it trains, given to the layers where they matter most."""
