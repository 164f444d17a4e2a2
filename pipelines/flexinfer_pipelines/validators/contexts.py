"""What models are asked. Fixed: another text would be another measurement."""

from __future__ import annotations

# Short facts whose answers small models give too. The base decides what is expected, not we.
SMOKE_PROMPTS = (
    "What is the capital of France? Answer briefly.",
    "Name the capital city of Italy.",
    "How many days are there in one week? Answer with a number.",
)

_PASSAGES = (
    "Water boils at one hundred degrees Celsius at sea level, but on a high mountain the pressure of the "
    "air is lower, so it boils at a lower temperature and eggs take longer to cook.",
    "The bridge was closed for repairs in the spring. During that time the buses took the long way around"
    " the lake, and people who lived on the far side had to leave home half an hour earlier.",
    "def average(numbers):\n"
    "    total = 0\n"
    "    for number in numbers:\n"
    "        total += number\n"
    "    return total / len(numbers)",
    "Dear Sir or Madam, I am writing to ask whether the room that you advertised last week is still free."
    " I would like to move in at the beginning of next month and can pay the first rent in advance.",
    "A triangle has three sides and three angles. The sum of its angles is one hundred and eighty "
    "degrees, so if two of them are known, the third can be found by subtraction.",
    "To make bread you need flour, water, salt and yeast. Mix them in a bowl, knead the dough until it is"
    " smooth, let it rise in a warm place, and bake it in a hot oven until the crust is brown.",
    "The heart pumps blood through the body. Arteries carry it away from the heart, veins bring it back, "
    "and in the lungs it takes up the oxygen that every cell needs.",
    "Once upon a time there was an old fisherman who lived with his wife in a small hut by the sea. Every"
    " morning he went out in his boat, and every evening he came home with hardly any fish.",
    "The committee met on Tuesday to discuss the budget for the coming year. After two hours of debate it"
    " was decided to spend more on schools and less on roads.",
    "In chess each player has sixteen pieces: one king, one queen, two rooks, two bishops, two knights "
    "and eight pawns. The game ends when a king cannot escape from attack.",
    '{"name": "Alice", "age": 31, "city": "Berlin", "languages": ["German", "English"], "employed": true}',
    "Plants take in carbon dioxide and water and, with the energy of sunlight, turn them into sugar and "
    "oxygen. This process is called photosynthesis and happens mostly in the leaves.",
    "SELECT name, price FROM products WHERE price > 100 ORDER BY price DESC LIMIT 10;",
    "The train to the coast leaves at half past seven from platform four. Please have your ticket ready "
    "and do not leave any luggage unattended in the station.",
    "When the Second World War ended in 1945, many cities in Europe lay in ruins. It took more than ten "
    "years to rebuild the houses, the factories and the railways.",
    "Question: If a shirt costs twenty dollars and is sold at a discount of ten percent, how much does "
    "the customer pay? Answer: The customer pays eighteen dollars.",
    "The moon moves around the earth in about twenty-seven days. Because it turns around itself in the "
    "same time, we always see the same side of it.",
    "Good teachers listen more than they talk. They ask questions that make students think, and they give"
    " them time to find the answer by themselves.",
    "for i in range(1, 101):\n"
    "    if i % 15 == 0:\n"
    "        print('FizzBuzz')\n"
    "    elif i % 5 == 0:\n"
    "        print('Buzz')",
    "She opened the window and looked out over the roofs of the town. It had rained during the night, and"
    " the streets were still wet, but the sky was already blue.",
    "Regular exercise keeps the heart healthy, strengthens the muscles and improves the mood. Even a walk"
    " of thirty minutes a day makes a difference.",
    "The contract begins on the first of January and ends on the thirty-first of December. Either party "
    "may end it earlier by giving three months' notice in writing.",
    "Gold is a heavy yellow metal. It does not rust, it is easy to shape, and it conducts electricity "
    "well, which is why it is used in jewellery and in computers.",
    "The library is open from nine in the morning until eight in the evening, Monday to Saturday. Books "
    "may be borrowed for four weeks; after that there is a small fee for each day.",
)
_CUTS = (0.5, 1.0)


def divergence_contexts() -> tuple[str, ...]:
    """Return the beginnings after which the next token is asked for: each passage cut in the middle, and whole.

    The cuts of one passage follow one another, so that an engine computes what they share once.
    """
    found = []
    for passage in _PASSAGES:
        for cut in _CUTS:
            end = len(passage) if cut == 1.0 else passage.rfind(" ", 0, int(len(passage) * cut))
            found.append(passage[: max(end, 1)].rstrip())
    return tuple(found)
