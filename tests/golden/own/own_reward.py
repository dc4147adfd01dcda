def short(prompt, response):
    return 1 / (1 + len(response))
