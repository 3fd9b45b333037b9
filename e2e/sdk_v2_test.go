package e2e_test

import (
	"context"
	"errors"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
)

// sdkV2 is github.com/anthropics/anthropic-sdk-go from its second major version on.
var sdkV2 = sdk{version: "2026-10-21", credential: "Authorization", connect: connectV2}

type talkV2 struct {
	client  anthropic.Client
	history []anthropic.MessageParam
	toolID  string // of the tool call to be answered
}

func connectV2(baseURL string, c credential) conversation {
	opts := []option.RequestOption{
		option.WithoutEnvironmentDefaults(),
		option.WithBaseURL(baseURL),
		option.WithMaxRetries(0),
	}
	switch c.way {
	case asAPIKey:
		opts = append(opts, option.WithAPIKey(c.token))
	case asAuthToken:
		opts = append(opts, option.WithAuthToken(c.token))
	case asHeader:
		opts = append(opts, option.WithHeader("X-Api-Key", c.token))
	}
	return &talkV2{client: anthropic.NewClient(opts...)}
}

func (s *talkV2) Ask(ctx context.Context, q question) (reply, error) {
	block := anthropic.NewTextBlock(q.text)
	if q.toolResult != "" {
		block = anthropic.NewToolResultBlock(s.toolID, q.toolResult, false)
	}
	s.history = append(s.history, anthropic.NewUserMessage(block))
	params := anthropic.MessageNewParams{
		Model:     modelAsked,
		MaxTokens: maxTokens,
		Messages:  s.history,
		Tools: []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{
			Name:        toolGiven,
			InputSchema: anthropic.ToolInputSchemaParam{Properties: map[string]any{"city": map[string]string{"type": "string"}}},
		}}},
	}
	if q.stream {
		return s.stream(ctx, params, q.leaveAfter)
	}
	msg, err := s.client.Messages.New(ctx, params)
	if err != nil {
		return reply{}, refusalV2(err)
	}
	return s.take(msg), nil
}

func (s *talkV2) stream(ctx context.Context, params anthropic.MessageNewParams, leaveAfter int) (reply, error) {
	events := s.client.Messages.NewStreaming(ctx, params)
	defer func() { _ = events.Close() }()
	var msg anthropic.Message
	n := 0
	for events.Next() {
		n++
		if err := msg.Accumulate(events.Current()); err != nil {
			return reply{events: n}, err
		}
		if n == leaveAfter {
			return reply{events: n}, nil
		}
	}
	if err := events.Err(); err != nil {
		return reply{events: n}, refusalV2(err)
	}
	r := s.take(&msg)
	r.events = n
	return r, nil
}

// take keeps an answer for the next turn.
func (s *talkV2) take(msg *anthropic.Message) reply {
	s.history = append(s.history, msg.ToParam())
	r := reply{id: msg.ID, model: msg.Model, stopReason: string(msg.StopReason), input: msg.Usage.InputTokens, output: msg.Usage.OutputTokens}
	for _, b := range msg.Content {
		switch b.Type {
		case "text":
			r.text += b.Text
		case "tool_use":
			s.toolID, r.toolName, r.toolInput = b.ID, b.Name, string(b.Input)
		}
	}
	return r
}

func (s *talkV2) Count(ctx context.Context, text string) (int64, error) {
	n, err := s.client.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{
		Model:    modelAsked,
		Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	})
	if err != nil {
		return 0, refusalV2(err)
	}
	return n.InputTokens, nil
}

// Models asks for pages of two, so that a list of three takes two.
func (s *talkV2) Models(ctx context.Context) ([]string, error) {
	pages := s.client.Models.ListAutoPaging(ctx, anthropic.ModelListParams{Limit: anthropic.Int(2)})
	var ids []string
	for pages.Next() {
		ids = append(ids, pages.Current().ID)
	}
	return ids, refusalV2(pages.Err())
}

func (s *talkV2) Model(ctx context.Context, id string) (string, error) {
	m, err := s.client.Models.Get(ctx, id, anthropic.ModelGetParams{})
	if err != nil {
		return "", refusalV2(err)
	}
	return m.ID, nil
}

func refusalV2(err error) error {
	var e *anthropic.Error
	if !errors.As(err, &e) {
		return err
	}
	return &refusal{status: e.StatusCode, kind: string(e.Type()), body: e.RawJSON(), header: e.Response.Header}
}
