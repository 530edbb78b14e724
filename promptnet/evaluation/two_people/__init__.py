"""Two people in one image: how much each stays who they are, with regions and without."""
