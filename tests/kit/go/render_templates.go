// Renders templates with Go's text/template, as Ollama does, for tests/exporting/test_ollama_templates.py.
//
// Standard input is a JSON list of {"template", "conversations": [{"messages"}]} in OpenAI's form; standard
// output is a JSON list of lists of {"text"} or {"error"}. The rules by which messages are joined restate those
// of Ollama 0.33.0-rc2 (template/template.go).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type conversation struct {
	Messages []message `json:"messages"`
}

type result struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
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
		"System": system, "Messages": messages, "Response": "",
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
		parsed, err := template.New("").Option("missingkey=zero").Parse(job.Template)
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
