"""What clients may call, as an OpenAPI document: the surface that is open, the parameters that the gateway reads."""

from typing import Any

from loraserve.gateway import errors


def _answers(*refusals: type[errors.ApiError]) -> dict[str, Any]:
    error = {"description": "An error in OpenAI's shape.", "content": {"application/json": {"schema": _ref("Error")}}}
    return {str(refusal.status): error for refusal in sorted(refusals, key=lambda refusal: refusal.status)}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _completion(summary: str, prompt: dict[str, Any]) -> dict[str, Any]:
    body = {
        "type": "object",
        "required": ["model", *prompt],
        "properties": {
            "model": {
                "type": "string",
                "minLength": 1,
                "description": "A name that /v1/models lists, or name@version.",
            },
            "stream": {"type": "boolean"},
            "user": {"type": "string", "description": "Keeps one end user on one side of a canary share."},
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
    "required": ["id", "object", "created", "owned_by", "parent", "status"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "parent": _TEXT_OR_NULL,
        "status": {"type": "string"},
    },
}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "loraserve", "version": "1"},
    "security": [{"key": []}],
    "paths": {
        "/v1/models": _MODELS,
        "/v1/completions": _completion("Completes a prompt.", {"prompt": _PROMPT}),
        "/v1/chat/completions": _completion("Answers a conversation.", {"messages": _MESSAGES}),
    },
    "components": {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Error": _ERROR,
            "Models": {
                "type": "object",
                "required": ["object", "data"],
                "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
            },
        },
    },
}
