"""Estonian words that a question about a single word is wasted on."""

import re

_words = re.compile(r"\w+").findall

FUNCTION_WORDS = frozenset(
    _words("""
    aasta aastal aastat aga ainult alates all alla edasi eelnevalt ees ega ehk ei eile enam enne ent et
    ette ga hetkel hiljem hommikul ja jah jne juba järel järgi järgmine ka kaasa kas kaudu kelle kes
    kohal kohta koos kord korda korral kui kuid kuna kuni kus kuu kuud käis küll la läbi ma me mida miks
    millal mille mis mitte mõne mõni nad neid nende ni ning nn nt nädala nädalat nüüd ole oleks olema oli
    olid olnud oma on peal peale pole poolt praegu päeva päevas pärast saab sai samas samuti seda see
    seejärel sel selle seni seoses sest siin siis sisse ta tal talle teda tema temal tuleb tuli tundi
    täna vahel vaid vastu veel väga välja või ära õhtul üks üldse üle
    """)
)
"""Estonian words (in lower case) that no entity consists of; an entity of these alone would not be found."""

UNITS = frozenset(_words("cm g h iu kg kpl l lk mcg mg min ml mm mmhg mmol mol ng nr p pg sek tab tbl tk tl tü ug"))
