"""The board: a web page over the run folders. The files stay the truth; the server holds nothing that a restart would lose."""
