"""Okabe and Ito's colours, which colour-blind readers tell apart; their yellow is too light for a line on white."""

BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
VERMILLION, PURPLE, SKY, GREY = "#D55E00", "#CC79A7", "#56B4E9", "#777777"
