"""Starting and stopping runs, going on with them, and the queue. What is asked is done to processes of their own (`posttrain.lab.processes`)."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from posttrain.board.pages.runs import listing_of
from posttrain.board.web import form_of, is_run, render, root_of, run_of, settings_of
from posttrain.lab import processes, queue


async def start(request: Request) -> Response:
    """Run the recipe that the form's ``recipe`` holds, or with ``queue`` put it behind what waits; on to where it is seen."""
    form, runs = await form_of(request), settings_of(request).runs
    wait = form.get("queue") == "yes"
    run = await run_in_threadpool(queue.start_text, form.get("recipe", ""), runs, queue=wait)
    return _on_to(request, "" if wait else f"runs/{run.path.name}")


async def stop(request: Request) -> Response:
    """Stop a run; ``when`` says when."""
    run, when = run_of(request), (await form_of(request)).get("when")
    if when not in ("after step", "now"):
        raise HTTPException(400, "say when: after step, or now")
    await run_in_threadpool(processes.stop, run, "now" if when == "now" else "after step")
    return _on_to(request, f"runs/{run.path.name}")


async def resume(request: Request) -> Response:
    """Go on with a run that ended before it was done; with ``queue`` when its turn comes."""
    run, form = run_of(request), await form_of(request)
    if form.get("queue") == "yes":
        await run_in_threadpool(queue.enqueue_again, run)
        return _on_to(request, "")
    await run_in_threadpool(processes.resume, run)
    return _on_to(request, f"runs/{run.path.name}")


def _on_to(request: Request, place: str) -> Response:
    """Send the page on to another one of the board."""
    listing_of(request).forget()
    if "hx-request" in request.headers:  # the scripts that ask stand on the first level
        return Response(status_code=204, headers={"hx-redirect": f"./{place}"})
    return RedirectResponse(f"{root_of(request)}{place}", 303)


# ---- the queue -----------------------------------------------------------------------------------------------------


def waiting(request: Request) -> Response:
    """The queue as a part of the list of runs. Whoever looks at it sees to it that it is worked on."""
    runs = settings_of(request).runs
    queue.keep_going(runs)
    entries = queue.entries(runs)
    begun = {entry.name for entry in entries if is_run(runs, entry.name)}
    return render(request, "queue.html", root="./", entries=entries, begun=begun)


async def move(request: Request) -> Response:
    """Put an entry at another ``place``."""
    place = (await form_of(request)).get("place", "")
    if not place.removeprefix("-").isdecimal():
        raise HTTPException(400, "a place is a number")
    await run_in_threadpool(queue.move, settings_of(request).runs, request.path_params["key"], int(place))
    return await _queue(request)


async def remove(request: Request) -> Response:
    """Take an entry off the queue."""
    await run_in_threadpool(queue.remove, settings_of(request).runs, request.path_params["key"])
    return await _queue(request)


async def _queue(request: Request) -> Response:
    """The queue as it is now, for a script; for a form the page that it is on."""
    if "hx-request" in request.headers:
        return await run_in_threadpool(waiting, request)
    return RedirectResponse(root_of(request), 303)


ROUTES = [
    Route("/start", start, methods=["POST"]),
    Route("/runs/{run}/stop", stop, methods=["POST"]),
    Route("/runs/{run}/resume", resume, methods=["POST"]),
    Route("/queue", waiting),
    Route("/queue/{key}/move", move, methods=["POST"]),
    Route("/queue/{key}/remove", remove, methods=["POST"]),
]
