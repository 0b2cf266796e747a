// Renders templates with Go's text/template, as Ollama does, for tests/exporting/test_go_templates.py.
//
// Standard input is a JSON list of {"template", "conversations": [{"messages", "tools"}]} in OpenAI's form; standard
// output is a JSON list of lists of {"text"} or {"error"}. The types, and the rules by which messages are joined and
// tools lose fields, restate those of Ollama 0.33.0-rc2 (template/template.go and api/types.go).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type arguments map[string]any

func (a arguments) String() string { return asJSON(a) }

type call struct {
	ID       string `json:"id"`
	Function struct {
		Index     int       `json:"index"`
		Name      string    `json:"name"`
		Arguments arguments `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Thinking   string `json:"thinking"`
	ToolCalls  []call `json:"tool_calls"`
	ToolName   string `json:"tool_name"`
	ToolCallID string `json:"tool_call_id"`
}

// kinds is the type of a parameter: one name, or several.
type kinds []string

func (k *kinds) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*k = kinds{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(k))
}

func (k kinds) MarshalJSON() ([]byte, error) {
	if len(k) == 1 {
		return json.Marshal(k[0])
	}
	return json.Marshal([]string(k))
}

type property struct {
	AnyOf       []property          `json:"anyOf,omitempty"`
	Type        kinds               `json:"type,omitempty"`
	Items       any                 `json:"items,omitempty"`
	Description string              `json:"description,omitempty"`
	Enum        []any               `json:"enum,omitempty"`
	Properties  map[string]property `json:"properties,omitempty"`
	Required    []string            `json:"required,omitempty"`
}

type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string              `json:"type"`
			Required   []string            `json:"required,omitempty"`
			Properties map[string]property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

type conversation struct {
	Messages []message `json:"messages"`
	Tools    []tool    `json:"tools"`
}

type result struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
}

func asJSON(value any) string {
	written, _ := json.Marshal(value)
	return string(written)
}

// joined merges messages of one role that follow each other, but not those of tools, and collects the system messages.
func joined(messages []message) (string, []*message) {
	var system []string
	var merged []*message
	for i := range messages {
		one := &messages[i]
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(merged) - 1; last >= 0 && merged[last].Role == one.Role && one.Role != "tool" {
			merged[last].Content += "\n\n" + one.Content
			continue
		}
		merged = append(merged, one)
	}
	return strings.Join(system, "\n\n"), merged
}

func render(parsed *template.Template, one conversation) result {
	system, messages := joined(one.Messages)
	var text strings.Builder
	err := parsed.Execute(&text, map[string]any{
		"System": system, "Messages": messages, "Tools": one.Tools, "Response": "",
		"Think": false, "ThinkLevel": "", "IsThinkSet": false,
	})
	if err != nil {
		return result{Error: err.Error()}
	}
	return result{Text: text.String()}
}

func main() {
	var jobs []struct {
		Template      string         `json:"template"`
		Conversations []conversation `json:"conversations"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	results := make([][]result, len(jobs))
	for number, job := range jobs {
		results[number] = []result{}
		parsed, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": asJSON}).Parse(job.Template)
		for _, one := range job.Conversations {
			if err != nil {
				results[number] = append(results[number], result{Error: err.Error()})
				continue
			}
			results[number] = append(results[number], render(parsed, one))
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(results)
}
