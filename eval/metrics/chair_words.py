"""The words for COCO's 80 categories in captions, and how a caption is searched for them.

The first word of a row is the category's name as COCO writes it. Plurals are made by rule, with
the irregular ones listed. Ambiguous words ("plant" of a factory, "orange" as a colour) count, as
they do in the paper; words that mostly mean something else ("desk", a "couple" of, "chicken") are
left out.
"""

import re
from collections.abc import Iterator
from functools import cache

WORDS = """
person: man, woman, boy, girl, child, kid, baby, infant, toddler, adult, lady, gentleman, guy,
  people, player, skier, snowboarder, surfer, skateboarder, skater, rider, driver, pedestrian,
  tourist, passenger, cyclist, bicyclist, biker, motorcyclist, crowd, officer, policeman,
  fireman, worker,
  chef, waiter, waitress, bride, groom, batter, pitcher, catcher, umpire, student, teacher, mother,
  father, mom, dad, son, daughter, brother, sister, teenager, male, female, individual, spectator,
  farmer, soldier, swimmer, athlete
bicycle: bike, tricycle, unicycle
car: automobile, sedan, suv, hatchback, minivan, taxi, cab, van, jeep, convertible, limousine
motorcycle: motorbike, motor bike, motor cycle, scooter, moped
airplane: aeroplane, plane, air plane, jet, jetliner, airliner, aircraft, biplane, seaplane
bus: minibus, trolleybus, double decker, school bus, tour bus
train: locomotive, tramway, tram, streetcar, subway train, caboose, passenger train
truck: lorry, pickup, pickup truck, firetruck, fire truck, tow truck, semi truck, dump truck
boat: ship, sailboat, canoe, kayak, ferry, rowboat, gondola, yacht, speedboat, raft, dinghy, vessel
traffic light: stoplight, stop light, traffic signal, street light
fire hydrant: hydrant
stop sign:
parking meter:
bench: pew
bird: pigeon, seagull, gull, duck, goose, swan, owl, parrot, eagle, hawk, ostrich, rooster, hen,
  peacock, penguin, flamingo, pelican, heron, crow, sparrow, robin, finch
cat: kitten, kitty, feline, tabby
dog: puppy, pup, hound, poodle, terrier, retriever, dachshund, corgi, beagle, bulldog, pug, husky
horse: pony, foal, mare, stallion, colt
sheep: lamb, ram, ewe
cow: cattle, bull, calf, ox, heifer, steer, bison
elephant:
bear: panda, polar bear, grizzly bear
zebra:
giraffe:
backpack: rucksack, knapsack
umbrella: parasol
handbag: purse, pocketbook
tie: necktie, bow tie, bowtie
suitcase: suit case, luggage, briefcase
frisbee: flying disc
skis: ski
snowboard:
sports ball: ball, baseball, basketball, football, soccer ball, tennis ball, volleyball
kite:
baseball bat: bat
baseball glove: baseball mitt, catcher's mitt
skateboard: longboard
surfboard:
tennis racket: racket, racquet, tennis racquet
bottle: flask
wine glass: wineglass, goblet
cup: mug, teacup
fork:
knife: pocketknife, butter knife
spoon: teaspoon, tablespoon
bowl:
banana: plantain
apple:
sandwich: burger, hamburger, cheeseburger, panini, sub sandwich
orange: tangerine, clementine
broccoli:
carrot:
hot dog: hotdog
pizza:
donut: doughnut
cake: cupcake, cheesecake
chair: armchair, recliner, stool, rocking chair, high chair
couch: sofa, loveseat, settee, futon
potted plant: houseplant, house plant, plant
bed: bunk bed, cot
dining table: table, dinner table
toilet: urinal, commode, lavatory
tv: television, television set, tv set
laptop: laptop computer, notebook computer
mouse: computer mouse
remote: remote control
keyboard: computer keyboard
cell phone: cellphone, cellular phone, phone, mobile phone, smartphone, smart phone,
  telephone, iphone
microwave: microwave oven
oven: stove, stove top oven
toaster: toaster oven
sink: washbasin, basin
refrigerator: fridge, freezer
book: novel, textbook
clock: alarm clock
vase:
scissors: scissor, shears
teddy bear: teddy, stuffed bear
hair drier: hair dryer, hairdryer, blow dryer
toothbrush: tooth brush
"""
IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "persons",
    "policeman": "policemen",
    "fireman": "firemen",
    "gentleman": "gentlemen",
    "goose": "geese",
    "mouse": "mice",
    "knife": "knives",
    "calf": "calves",
    "ox": "oxen",
    "sheep": "sheep",
    "aircraft": "aircraft",
    "bison": "bison",
}
# Phrases that hold a category's word and mean another category or none.
OTHERWISE: dict[str, str | None] = {
    **{
        f"{age} {animal}": animal
        for age in ("baby", "adult", "male", "female", "mother")
        for animal in "bird cat dog horse sheep cow elephant bear zebra giraffe".split()
    },
    **{f"baby {animal}": None for animal in ("animal", "cub", "monkey", "deer")},
    "passenger jet": "airplane",
    "passenger plane": "airplane",
    "passenger bus": "bus",
    "passenger car": "car",
    "toilet seat": "toilet",
    "toilet bowl": "toilet",
    "home plate": None,
    "train track": None,
    "train station": None,
    "train car": "train",
    "train platform": None,
    "bus stop": None,
    "bus station": None,
    "baseball field": None,
    "baseball game": None,
    "baseball player": "person",
    "baseball uniform": None,
    "baseball diamond": None,
    "tennis player": "person",
    "soccer player": "person",
    "football field": None,
    "basketball court": None,
    "sports bar": None,
    "table tennis": None,
    "table cloth": None,
    "table lamp": None,
    "orange juice": None,
    "apple juice": None,
    "cell phone tower": None,
    "seat belt": None,
    "light bulb": None,
}
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def find_objects(caption: str) -> Iterator[tuple[str, str]]:
    """The category words of a caption in order, as (word, category); longer phrases come first.

    >>> list(find_objects("Two men ride a passenger train past stop signs."))
    [('men', 'person'), ('passenger train', 'train'), ('stop signs', 'stop sign')]
    """
    phrases, longest = _phrases()
    words = _WORD.findall(caption.lower().replace("-", " "))
    start = 0
    while start < len(words):
        for length in range(min(longest, len(words) - start), 0, -1):
            phrase = " ".join(words[start : start + length])
            if phrase in phrases:
                category = phrases[phrase]
                if category is not None:
                    yield phrase, category
                start += length
                break
        else:
            start += 1


def category_of(name: str) -> str | None:
    """The category that COCO, or a synonym, calls so; None if there is none."""
    return _phrases()[0].get(name.strip().lower())


def categories() -> list[str]:
    """The 80 names."""
    return [category for category, _ in _rows()]


def _rows() -> list[tuple[str, list[str]]]:
    lines = WORDS.strip().replace("\n  ", " ").splitlines()
    parts = (line.partition(":") for line in lines)
    return [
        (category, [word.strip() for word in words.split(",") if word.strip()])
        for category, _, words in parts
    ]


@cache
def _phrases() -> tuple[dict[str, str | None], int]:
    """Every phrase, singular and plural, with its category, and the words of the longest."""
    phrases: dict[str, str | None] = {}
    for category, synonyms in _rows():
        for phrase in (category, *synonyms):
            phrases |= {phrase: category, _plural(phrase): category}
    for phrase, meant in OTHERWISE.items():
        phrases |= {phrase: meant, _plural(phrase): meant}
    return phrases, max(len(phrase.split()) for phrase in phrases)


def _plural(phrase: str) -> str:
    before, space, word = phrase.rpartition(" ")
    if word in IRREGULAR:
        plural = IRREGULAR[word]
    elif word.endswith(("s", "x", "ch", "sh")):
        plural = f"{word}es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        plural = f"{word[:-1]}ies"
    else:
        plural = f"{word}s"
    return f"{before}{space}{plural}"
