"""The course map says what the lessons say of themselves, and so does README."""

import json
import re

import pytest

import course_map
from qkit.exercises import ALL

SHELF = course_map.lessons()
README = (course_map.SHELF.parent / "README.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_lessons_say():
    stored = course_map.PAGE.read_text(encoding="utf-8")
    assert stored == course_map.page(SHELF), "lessons/README.md is out of date; make claims"


def test_the_minutes_of_readme_are_those_of_the_lessons():
    said = {file: int(n) for file, n in re.findall(r"^\| \[[^]]+\]\(lessons/([^)]+)\) \| (\d+) \|", README, re.M)}
    assert said == {lesson.file: lesson.minutes for lesson in SHELF}


@pytest.mark.parametrize("lesson", SHELF, ids=lambda lesson: lesson.file)
def test_minutes_are_those_of_reading_and_of_each_exercise_which_says_them(lesson):
    text = (course_map.SHELF / lesson.file).read_text(encoding="utf-8")
    asked = {name: exercise for name, exercise in ALL.items() if name.startswith(lesson.number)}
    said = dict(re.findall(r"\*\*(\d\d\.\d)\*\* \*?\((\d+ minutes, \w+)", text))
    wanted = {name: f"{exercise.minutes} minutes, {exercise.difficulty}" for name, exercise in asked.items()}
    assert said == wanted
    assert abs(lesson.exercises - sum(exercise.minutes for exercise in asked.values())) <= 2  # a lesson may round
    assert lesson.minutes == lesson.reading + lesson.exercises


def test_readme_and_the_first_lesson_link_to_it():
    first = (course_map.SHELF / SHELF[0].file).read_text(encoding="utf-8")
    assert "(lessons/README.md)" in README and "(README.md)" in first


@pytest.mark.parametrize("name", course_map.WAYS)
def test_a_way_keeps_its_time_and_has_what_each_lesson_needs_before_it(name):
    limit, _, way = course_map.WAYS[name]
    by_number = {lesson.number: lesson for lesson in SHELF}
    assert 0.7 * limit <= course_map.time_of(name, SHELF) <= limit
    for at, number in enumerate(way):
        assert set(by_number[number].needs) <= set(way[:at]), number


def test_every_lesson_stands_in_the_tree_once_below_a_lesson_that_it_needs():
    tree = course_map.page(SHELF).split("## What depends on what")[1].split("## The lessons")[0]
    assert sorted(re.findall(r"\]\((\d\d)_", tree)) == [lesson.number for lesson in SHELF]
    for lesson in SHELF:
        assert all(number < lesson.number for number in lesson.needs)


def test_a_lesson_that_does_not_say_its_minutes_is_refused(tmp_path):
    (tmp_path / "01_a.ipynb").write_text(json.dumps({"cells": [{"source": "# 01 · A\n\n**You need** nothing."}]}))
    with pytest.raises(ValueError, match=r"01_a\.ipynb lacks"):
        course_map.lessons(tmp_path)
