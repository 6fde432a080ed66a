"""Many runs of one recipe under different settings: which to run, what each gave, and which differences are more than noise."""
