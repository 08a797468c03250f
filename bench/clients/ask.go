// Asks every question of a file whole and streamed, all at once, with one of OpenAI's Go clients: the bench puts another
// version's module in the place of v3.
//
//	ask QUESTIONS.json
package main

import (
	"context"
	"encoding/json"
	"os"
	"sync"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

type question struct {
	Model string         `json:"model"`
	Name  string         `json:"name"`
	Body  map[string]any `json:"body"`
}

type answer struct {
	Model    string      `json:"model"`
	Name     string      `json:"name"`
	Streamed bool        `json:"streamed"`
	Text     string      `json:"text"`
	Calls    [][2]string `json:"calls"`
	Error    string      `json:"error"`
}

func (a *answer) whole(client openai.Client, body []option.RequestOption) error {
	said, err := client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{}, body...)
	if err != nil {
		return err
	}
	message := said.Choices[0].Message
	a.Text = message.Content
	for _, call := range message.ToolCalls {
		a.Calls = append(a.Calls, [2]string{call.Function.Name, call.Function.Arguments})
	}
	return nil
}

func (a *answer) stream(client openai.Client, body []option.RequestOption) error {
	pieces := client.Chat.Completions.NewStreaming(context.Background(), openai.ChatCompletionNewParams{}, body...)
	defer pieces.Close()
	for pieces.Next() {
		for _, choice := range pieces.Current().Choices {
			a.Text += choice.Delta.Content
			for _, part := range choice.Delta.ToolCalls {
				for int(part.Index) >= len(a.Calls) {
					a.Calls = append(a.Calls, [2]string{})
				}
				a.Calls[part.Index][0] += part.Function.Name
				a.Calls[part.Index][1] += part.Function.Arguments
			}
		}
	}
	return pieces.Err()
}

func main() {
	var questions []question
	content, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = json.Unmarshal(content, &questions)
	}
	if err != nil {
		panic(err)
	}
	client := openai.NewClient()
	var running sync.WaitGroup
	answers := make([]answer, 2*len(questions))
	for place := range answers {
		asked, given := questions[place/2], &answers[place]
		*given = answer{Model: asked.Model, Name: asked.Name, Streamed: place%2 == 1, Calls: [][2]string{}}
		var body []option.RequestOption
		for key, value := range asked.Body {
			body = append(body, option.WithJSONSet(key, value))
		}
		running.Go(func() {
			ask := given.whole
			if given.Streamed {
				ask = given.stream
			}
			if err := ask(client, body); err != nil {
				given.Error = err.Error()
			}
		})
	}
	running.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}
