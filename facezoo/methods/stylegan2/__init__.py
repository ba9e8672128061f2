"""stylegan2: a generator of people who do not exist, and what iFADIT stands on. See README.md."""
