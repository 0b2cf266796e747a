NAMES = ("lora", "adalora", "dora")
