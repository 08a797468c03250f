"""What clients may call, as an OpenAPI document: the surface that is open, the parameters that the gateway reads."""

from typing import Any

from loraserve.gateway import errors


def _answers(*refusals: type[errors.ApiError]) -> dict[str, Any]:
    error = {"description": "An error in OpenAI's shape.", "content": {"application/json": {"schema": _ref("Error")}}}
    return {str(refusal.status): error for refusal in sorted(refusals, key=lambda refusal: refusal.status)}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _forwarded(summary: str, prompt: dict[str, Any], *, either: bool = False) -> dict[str, Any]:
    """`prompt`: what the body must have besides the model; `either`: one of it."""
    body = {
        "type": "object",
        "required": ["model", *([] if either else prompt)],
        "properties": {
            "model": {
                "type": "string",
                "minLength": 1,
                "description": "A name that /v1/models lists, or name@version.",
            },
            "stream": {"type": "boolean"},
            "user": _USER,
            "safety_identifier": _USER,
            "service_tier": {"type": "string", "description": "`flex` takes what interactive requests leave."},
            **prompt,
        },
    }
    answer = {
        "description": "vLLM's answer, byte for byte.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
    refusals = _answers(
        errors.BadRequest,
        errors.Unauthorized,
        errors.Forbidden,
        errors.NoSuchModel,
        errors.TooSlow,
        errors.TooLarge,
        errors.RateLimited,
        errors.UpstreamBroken,
        errors.Overloaded,
        errors.UpstreamTimeout,
    )
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": answer, **refusals},
        }
    }


_USER = {"type": "string", "description": "Keeps one end user on one side of a canary share."}
_HEALTH = {
    "get": {
        "summary": "That a replica of the gateway lives; it says nothing about models.",
        "security": [],
        "responses": {
            "200": {"description": "It does.", "content": {"application/json": {"schema": {"type": "object"}}}}
        },
    }
}
_MODEL_PAGE = {
    "get": {
        "summary": "One model, or one version of it.",
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}],
        "responses": {
            "200": {"description": "The model.", "content": {"application/json": {"schema": _ref("Model")}}},
            **_answers(errors.BadRequest, errors.Unauthorized, errors.NoSuchModel),
        },
    }
}
_EMBEDDINGS = {
    "post": {
        "summary": "Refused: the models here generate text.",
        "responses": _answers(errors.BadRequest, errors.Unauthorized, errors.NoSuchPage),
    }
}
_MODELS = {
    "get": {
        "summary": "Every model that the key allows, asleep or not.",
        "responses": {
            "200": {
                "description": "The models.",
                "content": {"application/json": {"schema": _ref("Models")}},
            },
            **_answers(errors.BadRequest, errors.Unauthorized),
        },
    }
}

_MESSAGES = {"type": "array", "items": {"type": "object"}}
_TOKENS = {"type": "array", "items": {"type": "integer"}}
_PROMPT = {"oneOf": [{"type": "string"}, {"type": "array"}]}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "parent", "max_model_len", "status"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "parent": _TEXT_OR_NULL,
        "max_model_len": {"type": ["integer", "null"], "description": "Longest prompt plus answer, tokens."},
        "status": {"type": "string"},
    },
}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "loraserve", "version": "1"},
    "security": [{"key": []}],
    "paths": {
        "/health": _HEALTH,
        "/v1/models": _MODELS,
        "/v1/models/{model}": _MODEL_PAGE,
        "/v1/completions": _forwarded("Completes a prompt.", {"prompt": _PROMPT}),
        "/v1/chat/completions": _forwarded("Answers a conversation.", {"messages": _MESSAGES}),
        "/v1/responses": _forwarded("Answers a conversation, and keeps nothing of it.", {"input": _PROMPT}),
        "/v1/embeddings": _EMBEDDINGS,
        "/tokenize": _forwarded(
            "The tokens of a prompt, or of messages, and their count.",
            {"prompt": {"type": "string"}, "messages": _MESSAGES},
            either=True,
        ),
        "/detokenize": _forwarded("The text of tokens.", {"tokens": _TOKENS}),
    },
    "components": {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Error": _ERROR,
            "Models": {
                "type": "object",
                "required": ["object", "data"],
                "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}},
            },
            "Model": _MODEL,
        },
    },
}
